"""Image files as slices to segment, and masks as files in their geometry."""
