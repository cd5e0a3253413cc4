"""What several rooms use: files, pictures, endpoints, the Ray cluster. Knows nothing of models or data sets."""
