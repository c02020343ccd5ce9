"""The record of a run as one HTML file for any browser."""
