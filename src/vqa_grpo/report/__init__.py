"""What people read after a run: one HTML file, the same in short as Markdown, and metrics that no tracker chokes on."""
