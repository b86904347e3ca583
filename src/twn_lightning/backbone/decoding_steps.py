"""How the steps of a decoding run are executed: one by one, or as CUDA graphs over buffers that stay where they are.

Shape letters: A rows in the batch, S columns of the cache, H key-value heads, W width of a head, V vocabulary, D hidden
size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from twn_lightning.backbone.decoding_rows import Rows
from twn_lightning.backbone.interface import CacheView, KeyValues, ReasonerState

COMPACT_BELOW = 0.75
"""Drop finished rows once fewer than this share is still decoding: dropping copies the cache."""
COLUMNS_PER_GRAPH = 128
"""A recorded step reads this many columns more than a shorter one; a smaller number reads less and records more."""
ROWS_PER_GRAPH = 16


class DirectSteps:
    """Runs every step as it comes, over exactly the rows and columns there are."""

    check_every = 1
    """Tokens from one look at whether all rows are done to the next."""

    def rows(self, count: int) -> int:
        """Rows to run for so many that decode."""
        return count

    def columns(self, count: int) -> int:
        """Columns to read for so many that are filled."""
        return count

    def worth_dropping(self, running: int, rows: int) -> bool:
        """Whether finished rows are to leave the batch."""
        return running < COMPACT_BELOW * rows

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """Run a step; the key tells steps of different shapes or rules apart."""
        step()

    def forget(self) -> None:
        """Drop what is only valid for the buffers so far."""


class RecordedSteps(DirectSteps):
    """Records a step once per number of rows and columns and replays it: no Python per token.

    Rows and columns are rounded up, so that few recordings serve all batches.

    Args:
        record: turns a step into its replay; a CUDA graph by default.
    """

    check_every = 8

    def __init__(self, record: Callable[[Callable[[], None]], Callable[[], None]] | None = None):
        self._record = CudaRecorder() if record is None else record
        self._replays: dict[Hashable, Callable[[], None]] = {}

    def rows(self, count: int) -> int:
        if count <= ROWS_PER_GRAPH:
            return 1 << (count - 1).bit_length()
        return -(-count // ROWS_PER_GRAPH) * ROWS_PER_GRAPH

    def columns(self, count: int) -> int:
        return -(-count // COLUMNS_PER_GRAPH) * COLUMNS_PER_GRAPH

    def worth_dropping(self, running: int, rows: int) -> bool:
        """Weights are read whatever the number of rows: only halving a large batch pays for another recording."""
        return rows > 2 * ROWS_PER_GRAPH and self.rows(running) <= rows // 2

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """Run a step, the first time as it is: that also sets up the kernels, which a recording must not."""
        if key in self._replays:
            self._replays[key]()
            return
        step()
        self._replays[key] = self._record(step)

    def forget(self) -> None:
        self._replays.clear()


class CudaRecorder:
    """Captures steps as CUDA graphs that share their scratch memory, since one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            step()
        return graph.replay


class ColumnCache(CacheView):
    """A cache with room for the tokens to come: a step writes the column that a tensor names.

    Args:
        layers: buffers, each (A, H, S, W).
        column: the next free column, int64 (1,).
    """

    def __init__(self, layers: KeyValues, column: Tensor):
        super().__init__()
        self.layers, self.column = layers, column
        self.visible = 0
        """Columns that a step reads; its mask decides among them."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.visible

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.layers[layer_idx]
        keys.index_copy_(2, self.column, key.to(keys.dtype))
        values.index_copy_(2, self.column, value.to(values.dtype))
        return keys[:, :, : self.visible], values[:, :, : self.visible]

    def copy_of(self, rows_A: Tensor, columns: int) -> KeyValues:
        """The first columns of some rows."""
        return [(k[rows_A, :, :columns], v[rows_A, :, :columns]) for k, v in self.layers]

    def move_to_front(self, rows_A: Tensor, columns: int) -> None:
        """Overwrite the first rows with some rows."""
        for pair in self.layers:
            for tensor in pair:
                tensor[: len(rows_A), :, :columns] = tensor[rows_A, :, :columns]

    def head(self, rows: int) -> ColumnCache:
        """A view of the first rows."""
        return ColumnCache([(k[:rows], v[:rows]) for k, v in self.layers], self.column)


class Buffers:
    """The tensors that the steps of a run read and write, with room for some rows and columns.

    Args:
        state: gives devices, widths and dtypes.
        rows: room.
        columns: room.
        dtype: of hidden states, keys and values; the state's own by default.
    """

    @torch.inference_mode(False)  # a later run may write outside of inference mode
    def __init__(self, state: ReasonerState, rows: int, columns: int, dtype: torch.dtype | None):
        device = state.last_hidden_BD.device
        self.capacity = rows, columns

        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(rows, *shape, dtype=dtype, device=device)

        def like(tensor: Tensor) -> torch.dtype:
            return tensor.dtype if dtype is None else dtype

        self.rows = Rows(
            numbers_A=zeros(),
            running_A=zeros(dtype=torch.bool),
            closed_A=zeros(dtype=torch.bool),
            exited_A=zeros(dtype=torch.bool),
            matched_A=zeros(),
            lengths_A=zeros(),
            positions_A=zeros(),
            hidden_AD=zeros(state.last_hidden_BD.shape[1], dtype=like(state.last_hidden_BD)),
            ids_AS=zeros(columns),
            log_probs_AS=zeros(columns, dtype=torch.float32),
            readable_AS=zeros(columns, dtype=torch.bool),
        )
        layers = [
            (
                zeros(key.shape[1], columns, key.shape[3], dtype=like(key)),
                zeros(value.shape[1], columns, value.shape[3], dtype=like(value)),
            )
            for key, value in state.layers
        ]
        self.cache = ColumnCache(layers, torch.zeros(1, dtype=torch.long, device=device))
        self.noise_BV: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Of keys and values, which are nearly all."""
        return sum(tensor.nbytes for pair in self.cache.layers for tensor in pair)

    @torch.inference_mode(False)
    def noise(self, vocabulary: int) -> Tensor:
        """Room for the random numbers of all rows, fp32, always in the same place."""
        if self.noise_BV is None:
            self.noise_BV = self.rows.hidden_AD.new_ones(self.capacity[0], vocabulary, dtype=torch.float32)
        return self.noise_BV

    def load(self, state: ReasonerState, padding: int) -> None:
        """Start over with prefilled prompts. Rows beyond them do not run.

        Columns beyond the prompts are cleared: whatever an earlier run has left there, a mask does not hide NaN.
        """
        count, length = state.prompt_mask_BL.shape
        for tensor in self.rows.tensors():
            tensor.zero_()
        rows = self.rows
        rows.ids_AS.fill_(padding)
        rows.numbers_A[:count] = torch.arange(count, device=rows.numbers_A.device)
        rows.running_A[:count] = True
        rows.positions_A[:count] = state.prompt_end_B
        rows.hidden_AD[:count] = state.last_hidden_BD.to(rows.hidden_AD.dtype)
        rows.readable_AS[:count, :length] = state.prompt_mask_BL.bool()
        for buffers, prompts in zip(self.cache.layers, state.layers, strict=True):
            for buffer, prompt in zip(buffers, prompts, strict=True):
                buffer.zero_()
                buffer[:count, :, :length] = prompt
        self.cache.column.fill_(length)
