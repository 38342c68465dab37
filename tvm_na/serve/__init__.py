"""``tvm-na serve``: image classification over HTTP. Needs the extra ``serve``."""
