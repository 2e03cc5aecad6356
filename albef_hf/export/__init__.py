"""`albef export`: models as ONNX, and what runs them by onnxruntime."""
