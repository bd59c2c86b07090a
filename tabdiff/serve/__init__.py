"""The online endpoint: scores, samples and filled gaps over HTTP, in JSON or Arrow.

Needs the extra `serve`. Everything that is asked of the model runs in one thread, which owns it; requests for scores that
wait at the same time are scored together.
"""
