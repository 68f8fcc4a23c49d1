#!/usr/bin/env python3
"""Exports a BERT classifier for 10_bert.cpp: the model of transformers' BertForSequenceClassification, with its parameter
names, written anew so that it can be compiled.

Needs: pip install torch, for --pretrained transformers as well (tried with torch 2.15.0, transformers 5.24.0).
Run:   python3 examples/10_export_bert.py --pretrained prajjwal1/bert-tiny bert.pt
       build/release/examples/10_bert bert.pt
examples/models/bert.pt was made with --skeleton.

What was found with transformers' own class: torch.jit.script refuses it ("Failed to get source for BertConfig.__init__").
torch.jit.trace takes it, and the trace serves any batch size and length, but dropout stays as it was when traced: a
model traced for training also drops in evaluation, and one traced for evaluation never does.
"""
import argparse

import torch
from torch import nn

from skeleton import save


class Layer(nn.Module):
    def __init__(self, hidden: int, heads: int, inner: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        norm = lambda: nn.LayerNorm(hidden, eps=1e-12)
        self.attention = nn.ModuleDict({
            "self": nn.ModuleDict({name: nn.Linear(hidden, hidden) for name in ("query", "key", "value")}),
            "output": nn.ModuleDict({"dense": nn.Linear(hidden, hidden), "LayerNorm": norm()})})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(hidden, inner)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, hidden), "LayerNorm": norm()})

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, self.dropout, self.training)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        project = self.attention["self"]
        attended = nn.functional.scaled_dot_product_attention(
            self.split(project["query"](x)), self.split(project["key"](x)), self.split(project["value"](x)),
            attn_mask=mask, dropout_p=self.dropout if self.training else 0.0)
        mixed = self.attention["output"]["dense"](attended.transpose(1, 2).flatten(2))
        x = self.attention["output"]["LayerNorm"](x + self.drop(mixed))
        inner = nn.functional.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](x + self.drop(self.output["dense"](inner)))


class Bert(nn.Module):
    def __init__(self, classes: int, vocabulary: int, positions: int, hidden: int, layers: int, heads: int, inner: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.bert = nn.ModuleDict({
            "embeddings": nn.ModuleDict({
                "word_embeddings": nn.Embedding(vocabulary, hidden, padding_idx=0),
                "position_embeddings": nn.Embedding(positions, hidden),
                "token_type_embeddings": nn.Embedding(2, hidden),
                "LayerNorm": nn.LayerNorm(hidden, eps=1e-12)}),
            "encoder": nn.ModuleDict({"layer": nn.ModuleList(Layer(hidden, heads, inner, dropout) for _ in range(layers))}),
            "pooler": nn.ModuleDict({"dense": nn.Linear(hidden, hidden)})})
        self.classifier = nn.Linear(hidden, classes)

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, self.dropout, self.training)

    def forward(self, tokens: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Shapes: tokens [N, T] for any N and T, length [N]; returns [N, C]."""
        embeddings = self.bert["embeddings"]
        places = torch.arange(tokens.size(1), device=tokens.device)
        embedded = (embeddings["word_embeddings"](tokens) + embeddings["position_embeddings"](places)
                    + embeddings["token_type_embeddings"](torch.zeros_like(tokens)))
        x = self.drop(embeddings["LayerNorm"](embedded))
        mask = (places.unsqueeze(0) < length.unsqueeze(1)).unsqueeze(1).unsqueeze(1)
        for layer in self.bert["encoder"]["layer"]:
            x = layer(x, mask)
        return self.classifier(self.drop(torch.tanh(self.bert["pooler"]["dense"](x[:, 0]))))


def made_like(theirs, classes: int) -> Bert:
    """A Bert of the size, and with the weights, of a BertForSequenceClassification."""
    c = theirs.config
    model = Bert(classes, c.vocab_size, c.max_position_embeddings, c.hidden_size, c.num_hidden_layers, c.num_attention_heads,
                 c.intermediate_size, c.hidden_dropout_prob)
    model.load_state_dict({name: value for name, value in theirs.state_dict().items() if name != "bert.embeddings.position_ids"})
    return model


def compare(ours: Bert, theirs) -> None:
    tokens, length = torch.randint(1000, (3, 9)), torch.tensor([9, 5, 2])
    mask = (torch.arange(9) < length.unsqueeze(1)).long()
    torch.testing.assert_close(ours.eval()(tokens, length), theirs.eval()(input_ids=tokens, attention_mask=mask).logits)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("path", help="file to write")
parser.add_argument("--classes", type=int, default=2)
weights = parser.add_mutually_exclusive_group()
weights.add_argument("--pretrained", metavar="NAME", help="a BERT of the Hugging Face hub, uncased English; random weights otherwise")
weights.add_argument("--skeleton", action="store_true", help="no weights, compressed")
options = parser.parse_args()

torch.manual_seed(0)
if options.pretrained:
    from transformers import BertForSequenceClassification
    theirs = BertForSequenceClassification.from_pretrained(options.pretrained, num_labels=options.classes)
    model = made_like(theirs, options.classes)
    compare(model, theirs)
else:
    model = Bert(options.classes, vocabulary=30522, positions=512, hidden=128, layers=2, heads=2, inner=512, dropout=0.1)  # BERT-tiny
save(model, options.path, options.skeleton)
