"""The demo: a web page to try a model on, which is also a Space."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # Gradio reads it when it is imported
