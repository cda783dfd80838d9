"""Shipped models, one ``NAME.ff`` file each; `farfield.load("NAME")` opens them and ``farfield models`` lists them."""
