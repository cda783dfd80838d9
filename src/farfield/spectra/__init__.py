"""Spectra: correlation functions and what follows from them, as functions of arrays, not of models. Still empty."""
