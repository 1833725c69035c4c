"""The commands of `python -m vision_jax VERB`, one file per verb: `main(argv)` does what the flags say.

They return their exit status: 0 done, 1 failed with one line, 2 wrong flags.
"""

# Verb -> what `python -m vision_jax` says of it. The file is called as the verb is, with _ for -.
VERBS = {
    "prepare": "write a data set for training, from archives, folders or tfds",
    "models": "list the models, with their parameters, multiply-adds and published accuracy",
    "preview": "show every augmentation in one picture",
    "benchmark": "measure input and prediction beside other loaders, and the training step beside torch",
    "predict": "predict the classes of images, folders and archives",
    "zero-shot": "predict classes by their names, by CLIP or SigLIP, of images, folders and archives",
    "features": "write the features of images, in shards, and measure them: neighbors, ridge and logistic regression",
    "search": "find the images that are most similar to others, as text or as an HTML page",
    "suite": "measure a classifier on ImageNet's validation set, ReaL, V2, A, R, Sketch, C and ObjectNet",
    "report": "show runs in one HTML file: curves, classes, mistakes, samples, configuration",
    "export": "write a checkpoint as weights for timm or torchvision",
}
