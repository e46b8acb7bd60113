"""A page in the browser to try a served mPLUG: Gradio over `clients`, in an environment of its own."""
