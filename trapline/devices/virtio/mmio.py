"""The virtio-mmio transport, version 2 (modern), and the base class of the devices behind it."""

from __future__ import annotations

from enum import IntFlag
from typing import ClassVar

from trapline.devices.device import IrqLine, MmioDevice, Reg
from trapline.devices.memory import GuestRam
from trapline.devices.state import Stateful
from trapline.devices.virtio.queue import Queue, QueueError

F_INDIRECT_DESC = 1 << 28
F_VERSION_1 = 1 << 32

CONFIG_OFFSET = 0x100
VENDOR = 0x4C50_4154  # "TAPL": any value identifies the vendor


class Status(IntFlag):
    """The device status register."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


class Interrupt(IntFlag):
    """Causes in InterruptStatus."""

    USED_BUFFER = 1
    CONFIG_CHANGE = 2


class VirtioDevice(Stateful):
    """What a device is apart from its transport.

    Class attributes: `device_id`, `queue_sizes` (one maximum per queue), `features` (bits offered besides the transport's own).
    """

    device_id: ClassVar[int] = 0
    queue_sizes: ClassVar[tuple[int, ...]] = ()
    features: int = 0

    def __init__(self) -> None:
        self.transport: VirtioMmio | None = None

    def config(self) -> bytes:
        """The device's configuration space."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver wrote to the configuration space."""

    def reset(self) -> None:
        """The driver reset the device."""

    def notify(self, index: int, queue: Queue) -> bool:
        """The driver made buffers available in a queue; returns whether any were used."""
        raise NotImplementedError


class VirtioMmio(MmioDevice, size=0x200, compatible=("virtio,mmio",)):
    """One virtio-mmio slot with a device in it."""

    MagicValue = Reg(0x000, ro=True, reset=int.from_bytes(b"virt", "little"))
    Version = Reg(0x004, ro=True, reset=2)
    DeviceID = Reg(0x008, ro=True)
    VendorID = Reg(0x00C, ro=True, reset=VENDOR)
    DeviceFeatures = Reg(0x010, ro=True)
    DeviceFeaturesSel = Reg(0x014, wo=True)
    DriverFeatures = Reg(0x020, wo=True)
    DriverFeaturesSel = Reg(0x024, wo=True)
    QueueSel = Reg(0x030, wo=True)
    QueueNumMax = Reg(0x034, ro=True)
    QueueNum = Reg(0x038, wo=True)
    QueueReady = Reg(0x044)
    QueueNotify = Reg(0x050, wo=True)
    InterruptStatus = Reg(0x060, ro=True)
    InterruptACK = Reg(0x064, wo=True)
    DeviceStatus = Reg(0x070, mask=0xFF)
    QueueDescLow = Reg(0x080, wo=True)
    QueueDescHigh = Reg(0x084, wo=True)
    QueueDriverLow = Reg(0x090, wo=True)
    QueueDriverHigh = Reg(0x094, wo=True)
    QueueDeviceLow = Reg(0x0A0, wo=True)
    QueueDeviceHigh = Reg(0x0A4, wo=True)
    SHMLenLow = Reg(0x0B0, ro=True, reset=0xFFFF_FFFF)
    SHMLenHigh = Reg(0x0B4, ro=True, reset=0xFFFF_FFFF)
    SHMBaseLow = Reg(0x0B8, ro=True, reset=0xFFFF_FFFF)
    SHMBaseHigh = Reg(0x0BC, ro=True, reset=0xFFFF_FFFF)
    ConfigGeneration = Reg(0x0FC, ro=True)

    kept = ("accepted", "last_error", "queues", "device")

    def __init__(self, device: VirtioDevice, ram: GuestRam, irq: IrqLine | None = None) -> None:
        self.device = device
        self.ram = ram
        self.queues = [Queue(ram, size) for size in device.queue_sizes]
        self.offered = device.features | F_INDIRECT_DESC | F_VERSION_1
        self.accepted = 0
        self.last_error = ""
        device.transport = self
        super().__init__(irq)

    def reset(self) -> None:
        """Device, queues and registers."""
        self.device.reset()
        for queue in self.queues:
            queue.reset()
        self.accepted = 0
        super().reset()

    def irq_level(self) -> bool:
        """High while the driver has not acknowledged a cause."""
        return self.InterruptStatus != 0

    @property
    def queue(self) -> Queue | None:
        """The queue that QueueSel names, None if there is no such queue."""
        return self.queues[self.QueueSel] if self.QueueSel < len(self.queues) else None

    @property
    def running(self) -> bool:
        """Whether the driver has finished its set-up and the device is not broken."""
        return self.DeviceStatus & (Status.DRIVER_OK | Status.NEEDS_RESET) == Status.DRIVER_OK

    def process(self, index: int) -> None:
        """Let the device work on a queue: after a notification, or when the outside has something for it."""
        if not self.running or index >= len(self.queues) or not self.queues[index].ready:
            return
        queue = self.queues[index]
        try:
            if self.device.notify(index, queue) and queue.wants_interrupt():
                self.InterruptStatus |= Interrupt.USED_BUFFER
        except QueueError as error:
            self.fail(str(error))
        self.update_irq()

    def fail(self, reason: str) -> None:
        """The driver broke the rules: the device needs a reset and does nothing until then."""
        self.last_error = reason
        self.DeviceStatus |= Status.NEEDS_RESET
        if self.DeviceStatus & Status.DRIVER_OK:
            self.InterruptStatus |= Interrupt.CONFIG_CHANGE

    def config_changed(self) -> None:
        """The device changed its configuration space."""
        self.ConfigGeneration = self.ConfigGeneration + 1 & 0xFFFF_FFFF
        self.InterruptStatus |= Interrupt.CONFIG_CHANGE
        self.update_irq()

    # Registers

    @DeviceID.value
    def device_id(self) -> int:
        return self.device.device_id

    @DeviceFeatures.value
    def device_features(self) -> int:
        return self.offered >> 32 * self.DeviceFeaturesSel & 0xFFFF_FFFF if self.DeviceFeaturesSel < 2 else 0

    @DriverFeatures.write
    def accept_features(self, value: int) -> None:
        if self.DriverFeaturesSel < 2 and not self.DeviceStatus & Status.FEATURES_OK:
            shift = 32 * self.DriverFeaturesSel
            self.accepted = self.accepted & ~(0xFFFF_FFFF << shift) | value << shift

    @QueueNumMax.value
    def queue_max(self) -> int:
        return self.queue.max_size if self.queue else 0

    @QueueNum.write
    def set_queue_size(self, value: int) -> None:
        if self.queue and not self.queue.ready:
            self.queue.size = value

    @QueueReady.value
    def queue_ready(self) -> int:
        return int(self.queue.ready) if self.queue else 0

    @QueueReady.write
    def set_queue_ready(self, value: int) -> None:
        if self.queue is None:
            return
        if not value & 1:
            self.queue.ready = False
            return
        try:
            self.queue.check_layout()
        except QueueError as error:
            self.fail(str(error))
        else:
            self.queue.ready = True

    @QueueNotify.write
    def notified(self, value: int) -> None:
        self.process(value)

    @InterruptACK.write
    def acknowledge(self, value: int) -> None:
        self.InterruptStatus &= ~value

    @DeviceStatus.write
    def set_status(self, value: int) -> None:
        if value == 0:
            self.reset()
            return
        if value & Status.FEATURES_OK and not self.DeviceStatus & Status.FEATURES_OK:
            if self.accepted & ~self.offered or not self.accepted & F_VERSION_1:
                value &= ~Status.FEATURES_OK
        self.DeviceStatus = value | self.DeviceStatus & Status.NEEDS_RESET

    def _set_address(self, name: str, value: int, high: bool) -> None:
        if self.queue and not self.queue.ready:
            old: int = getattr(self.queue, name)
            setattr(self.queue, name, old & 0xFFFF_FFFF | value << 32 if high else old & ~0xFFFF_FFFF | value)

    @QueueDescLow.write
    def set_desc_low(self, value: int) -> None:
        self._set_address("descriptors", value, high=False)

    @QueueDescHigh.write
    def set_desc_high(self, value: int) -> None:
        self._set_address("descriptors", value, high=True)

    @QueueDriverLow.write
    def set_driver_low(self, value: int) -> None:
        self._set_address("driver_ring", value, high=False)

    @QueueDriverHigh.write
    def set_driver_high(self, value: int) -> None:
        self._set_address("driver_ring", value, high=True)

    @QueueDeviceLow.write
    def set_device_low(self, value: int) -> None:
        self._set_address("device_ring", value, high=False)

    @QueueDeviceHigh.write
    def set_device_high(self, value: int) -> None:
        self._set_address("device_ring", value, high=True)

    # The configuration space is memory-like.

    def read_area(self, offset: int, size: int) -> int:
        """Configuration space; zero past its end and in the gaps between registers."""
        start = offset - CONFIG_OFFSET
        if start < 0:
            return 0
        return int.from_bytes(self.device.config()[start : start + size], "little")

    def write_area(self, offset: int, size: int, value: int) -> None:
        """Configuration space."""
        if offset >= CONFIG_OFFSET:
            self.device.write_config(offset - CONFIG_OFFSET, value.to_bytes(size, "little"))
