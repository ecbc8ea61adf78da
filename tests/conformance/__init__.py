"""What each KVM call answers, as one list of cases that runs on every backend. `frame.py` says how to add a case."""
