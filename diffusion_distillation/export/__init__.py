"""Export and share models.

- `sampler_file`: a folder with the sampler as one file that needs only JAX and flatbuffers, an archive, or both.
- `options`: what such a file takes and returns.
- `card`: the model card of the folder, README.md.
- `hub`: upload the folder to the Hugging Face Hub.
"""
