"""The page: what it says as plain values, and the file that they become."""
