"""How it is measured: load, figures, the machine, its floors."""
