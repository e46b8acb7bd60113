"""Everything that only the demo checkpoint needs: scenes, texts, its training."""
