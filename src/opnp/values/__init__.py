"""What is recorded, each thing declared once: figures, rows, points, pictures, fits. No torch, and nothing above it."""
