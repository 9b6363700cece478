"""What the library costs, as ratios to physical floors and to rivals, measured side by side in one run."""
