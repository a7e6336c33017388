"""mmdet's own Mask R-CNN, ResNet-50 with a feature pyramid and 12 epochs, with the sampler put in.

Images keep their aspect ratio and are padded; landscape and portrait images are kept apart, as mmdet does.
The largest image side is the sampled one: 1344 stands for mmdet's 1333 x 800.
"""

_base_ = ["mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"]

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=False),
    dict(type="graftwork.ResizeToSampledScale", keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(
    batch_sampler=dict(
        _delete_=True,
        type="graftwork.MultiScaleBatchSampler",
        mode="MSc-VBS",
        base_size=(800, 1344),
        min_size=672,
        max_size=1664,
        max_scales=10,
        divisor=32,
        aspect_groups=True,
    ),
    dataset=dict(
        _delete_=True,
        type="graftwork.MultiScaleDatasetWrapper",
        dataset=dict(
            type="CocoDataset",
            data_root="data/coco/",
            ann_file="annotations/instances_train2017.json",
            data_prefix=dict(img="train2017/"),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=train_pipeline,
        ),
    ),
)
train_cfg = dict(_delete_=True, type="graftwork.MultiScaleTrainLoop", max_epochs=12)
custom_hooks = [dict(type="graftwork.MultiScaleHook")]
