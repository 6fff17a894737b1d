"""The door: an OpenAI interface and a page, over any backend that answers requests. FastAPI stands here alone.

`app` builds it, `serve` opens it in this process, `door` in one of a system's. Half of the files need no FastAPI, which
takes most of a second to import, so nothing is imported here.
"""
