"""Drawers: for print by matplotlib, for pages by plotly."""
