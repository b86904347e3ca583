"""Distilling the generative embedding into the discriminative one.

Shape letters: Q queries, C candidates, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity_distillation(
    student_QD: Tensor, teacher_QD: Tensor, candidates_CD: Tensor, *, temperature: float
) -> Tensor:
    """`KL(softmax(teacher . C / tau) || softmax(student . C / tau))`, the mean over queries, in fp32.

    The student learns how the teacher ranks the batch's candidates, not where the teacher lies: two embeddings may
    differ and rank alike. Teacher and candidates are constants here, so only the student learns.

    Args:
        student_QD: Discriminative query embeddings (Q, D), unit norm.
        teacher_QD: Generative embeddings of the same queries (Q, D), unit norm; detached here.
        candidates_CD: Candidate embeddings (C, D), unit norm; detached here.
        temperature: Softmax temperature of both, above 0.

    Returns:
        Scalar loss in nats, at least 0.

    Raises:
        ValueError: On shapes that do not fit, or a temperature not above 0.

    Reference: Hinton et al. 2015 (arXiv 1503.02531), over a batch's similarities instead of classes.

    Relations:
        Equals 0 when the student is the teacher, and log C minus the teacher's entropy for an all-zero student.
    """
    if student_QD.shape != teacher_QD.shape or candidates_CD.shape[1:] != student_QD.shape[1:]:
        raise ValueError(
            f"student {tuple(student_QD.shape)} and teacher {tuple(teacher_QD.shape)} must agree, and the candidates "
            f"{tuple(candidates_CD.shape)} must be of their width."
        )
    if temperature <= 0:
        raise ValueError(f"stage.temperature must be above 0, got {temperature}.")
    with torch.autocast(device_type=student_QD.device.type, enabled=False):
        candidates_DC = candidates_CD.detach().float().T / temperature
        teacher_QC = (teacher_QD.detach().float() @ candidates_DC).log_softmax(-1)
        student_QC = (student_QD.float() @ candidates_DC).log_softmax(-1)
        return F.kl_div(student_QC, teacher_QC, reduction="batchmean", log_target=True)
