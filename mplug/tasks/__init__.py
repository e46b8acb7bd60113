"""The public models, one file each: parse → run → respond. They know no Triton."""
