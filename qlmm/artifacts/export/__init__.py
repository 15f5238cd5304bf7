"""An adapter made ready for another program."""
