"""100 epochs of SGD, half precision, and an average of the weights.

The learning rate 0.1 is meant for 32 images per step at the base (8 GPUs); the backbone gets a tenth of it,
and both are divided by ten after epochs 60 and 84.
"""

max_epochs = 100

train_cfg = dict(type="graftwork.MultiScaleTrainLoop", max_epochs=max_epochs, val_interval=5)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="AmpOptimWrapper",
    optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=4e-5),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
# by epoch: with fewer steps per epoch the fraction of the training is kept, not the number of iterations
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=max_epochs, by_epoch=True, milestones=[60, 84], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=32)
