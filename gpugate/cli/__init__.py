"""The command line. `main.main` runs one command; every command imports what it needs when it is called."""
