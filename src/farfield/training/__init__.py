"""Training: the typed configuration, losses, the Lightning module and the loop around it.

``farfield train CONFIG.yaml`` fits a potential to energies and forces (and stress); charges and dipoles are never
trained on unless asked for. Runs can be killed at any moment and resume at their last checkpoint.
"""
