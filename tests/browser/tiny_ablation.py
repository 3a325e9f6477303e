"""The ablation that the browser looks at: what is launched, and the cells that it has."""

SPEC = """
name: tiny_ablation
question: Does the history of the gradient help?
train:
  data: {name: arrays, file: images.npz, validation: 40, crop_padding: 1}
  model: {name: resnet, depth: 8, width: 4}
  estimator: {name: fsg, slow_weight: 0.5, fast_lr: 1.0e-2}
  optimizer: {name: adam, lr: 3.0e-3}
  epochs: 4
  batch_size: 20
  log_every: 2
variants:
  fsg: {}
  no_history: {estimator.history_length: 1}
  ste: {estimator: ste}
seeds: [0, 1]
report: {baseline: ste, primary: fsg}
"""
CELLS = [(variant, seed) for variant in ("fsg", "no_history", "ste") for seed in (0, 1)]
