"""Rendering and its parts, usable without any framework but torch."""
