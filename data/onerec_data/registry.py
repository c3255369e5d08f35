"""The list of tasks, the eleven of the release and one for data without a chain of thought: the files in ``pretrain/`` and ``sft/`` each define one, and this is where they are gathered."""

from __future__ import annotations

from data.onerec_data.pretrain import item_understand as pretrain_item_understand
from data.onerec_data.pretrain import user_profile as pretrain_user_profile
from data.onerec_data.pretrain import video_rec as pretrain_video_rec
from data.onerec_data.sft import (
    ad_rec,
    interactive_rec,
    item_understand,
    label_cond_rec,
    label_pred,
    product_rec,
    rec_reason,
    reco_reason,
    video_rec,
)
from data.onerec_data.tasks import Task

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (
        pretrain_video_rec,
        pretrain_user_profile,
        pretrain_item_understand,
        video_rec,
        interactive_rec,
        label_cond_rec,
        label_pred,
        ad_rec,
        product_rec,
        item_understand,
        rec_reason,
        reco_reason,
    )
}
