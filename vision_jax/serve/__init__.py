"""A model behind HTTP: an image is posted, and its classes are answered; see `python -m vision_jax serve`.

`backends` computes, `batching` brings together what is asked at the same time, `app` is the HTTP interface without a
server, and `program` listens, and ends when all that was asked has been answered. `app` and `program` need the extra
`serve`.
"""
