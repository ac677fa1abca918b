"""A run's network as a Hugging Face directory, with what it was made from."""

from pathlib import Path

from gad_jax.data.chat import Chat
from gad_jax.models import source, writing
from gad_jax.models.carried import Carried
from gad_jax.models.config import DecoderConfig
from gad_jax.training import state
from gad_jax.training.loading import Made
from gad_jax.types import Params


def write(directory: Path, network: DecoderConfig, params: Params, chat: Chat, made: Made) -> None:
    """Writes the network with the tokenizer that it was trained with. All processes call it."""
    writing.save(directory, network, params, _carried(network, chat, made))


def _carried(network: DecoderConfig, chat: Chat, made: Made) -> Carried:
    path = made.config.student.path
    if network.head == "score":
        path = state.discriminator_path(made.config)
    return Carried(
        directory=Path(chat.directory),
        tokenizer=chat.tokenizer,
        end_tokens=chat.end_tokens,
        network=source.resolve(path),
        chat_template=None,  # the source's own: training changed nothing in it
    )
