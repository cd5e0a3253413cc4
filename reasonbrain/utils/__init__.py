"""Shared helpers: files, locks, journals, pictures, galleries, endpoints, Ray. Independent of models and data sets."""
