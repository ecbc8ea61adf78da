"""Virtio 1.x devices: the MMIO transport, the split virtqueue, and the devices behind them."""
