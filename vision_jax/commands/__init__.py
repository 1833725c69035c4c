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
    "explain": "show what a model looks at: Grad-CAM, integrated gradients and others, on images of one's own",
    "suite": "measure a classifier on ImageNet's validation set, ReaL, V2, A, R, Sketch, C and ObjectNet",
    "sweep": "search over fields of a configuration: a run for each trial, by several processes, bad ones ended early",
    "report": "show runs in one HTML file: curves, classes, mistakes, samples, configuration",
    "serve": "answer the classes of images over HTTP, those that come together in one batch",
    "compress": "write smaller ONNX files of a model, and measure what they lose and gain",
    "export": "write a model for other programs: ONNX, StableHLO, weights for timm or torchvision",
}
