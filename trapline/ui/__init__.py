"""What the user sees: the command line. It uses the public API and the virtual machine monitor only."""
