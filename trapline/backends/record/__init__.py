"""KVM calls as events: a log of them, the log's replay on another backend, and one program on two backends side by side.

`recorder.py` makes an event of each call, from the declarations; `replayer.py` makes the call of an event again and compares what comes of
it; `compare.py` puts the two together. `log.py` has events as lines of JSON, `difference.py` says where two differ.
"""
