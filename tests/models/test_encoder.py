import pytest
import torch
from torch.testing import assert_close

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, IKANDirect
from ika_lightning.models import Encoder, Ensemble, RowTransformer

LAYERS = [DotProduct, RBF, IKANDirect, IKAN, MIKAN]
WIDTH, HEADS, FEATURES = 10, 2, 3


def encoder(attention, **options) -> Encoder:
    torch.manual_seed(0)
    return Encoder(WIDTH, depth=2, num_heads=HEADS, attention=attention, **options).double().eval()


def rows(attention) -> RowTransformer:
    torch.manual_seed(0)
    return RowTransformer(FEATURES, WIDTH, depth=2, num_heads=HEADS, attention=attention).double().eval()


@pytest.mark.parametrize("attention", LAYERS)
class TestEncoder:
    def test_padding_changes_nothing(self, attention):
        model, x = encoder(attention), torch.randn(3, 7, WIDTH).double()
        mask = torch.zeros(3, 11).bool()
        mask[:, 7:] = True
        padded = torch.cat([x, 100 * torch.randn(3, 4, WIDTH).double()], 1)
        assert_close(model(padded, mask)[:, :7], model(x))

    def test_a_sequence_does_not_depend_on_its_batch(self, attention):
        model, x = encoder(attention), torch.randn(3, 7, WIDTH).double()
        other = torch.cat([x[:1], torch.randn(2, 7, WIDTH).double()])
        assert_close(model(other)[0], model(x)[0], rtol=0, atol=0)

    def test_order_does_not_matter_without_positions(self, attention):
        model, x = encoder(attention), torch.randn(3, 7, WIDTH).double()
        order = torch.randperm(7)
        assert_close(model(x[:, order]), model(x)[:, order])

    def test_context_is_the_leading_positions(self, attention):
        """The same as masking the others as keys, at a smaller cost."""
        model, x = encoder(attention), torch.randn(3, 11, WIDTH).double()
        mask = (torch.arange(11) >= 7).expand(3, 11)
        assert_close(model(x, context_length=7), model(x, mask))

    def test_every_parameter_learns(self, attention):
        model, x = encoder(attention).train(), torch.randn(3, 7, WIDTH).double()
        model(x).square().sum().backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_sizes() -> None:
    assert len(encoder(DotProduct).layers) == 2
    assert encoder(DotProduct, ffn_width=17).layers[0].ffn[0].out_features == 17
    assert encoder(DotProduct).layers[0].ffn[0].out_features == 4 * WIDTH
    with pytest.raises(ValueError, match="depth must be at least 0, got -1"):
        Encoder(8, -1, 2, DotProduct)
    with pytest.raises(ValueError, match="embed_dim must be a positive multiple of num_heads, got embed_dim=10, num_h"):
        Encoder(10, 1, 3, DotProduct)


def test_dropout_is_for_training() -> None:
    model, x = encoder(DotProduct, dropout=0.5), torch.randn(3, 7, WIDTH).double()
    assert_close(model(x), model(x), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("attention", LAYERS)
class TestRowTransformer:
    def test_other_queries_have_no_influence(self, attention):
        """Bit for bit: nothing of another query may leak, through the mean key least of all."""
        model, context, queries = rows(attention), torch.randn(13, FEATURES).double(), torch.randn(5, FEATURES).double()
        before = model(context, queries)
        queries[3] += 7
        after = model(context, queries)
        assert_close(after[[0, 1, 2, 4]], before[[0, 1, 2, 4]], rtol=0, atol=0)
        assert not torch.isclose(after[3], before[3])

    def test_queries_one_by_one(self, attention):
        model, context, queries = rows(attention), torch.randn(13, FEATURES).double(), torch.randn(5, FEATURES).double()
        one_by_one = torch.cat([model(context, query.unsqueeze(0)) for query in queries])
        assert_close(model(context, queries), one_by_one)

    def test_a_context_row_may_ask(self, attention):
        model, context = rows(attention), torch.randn(13, FEATURES).double()
        assert_close(model(context, context[3:5]), model(context)[3:5])

    def test_the_context_matters_but_not_its_order(self, attention):
        model, context, queries = rows(attention), torch.randn(13, FEATURES).double(), torch.randn(5, FEATURES).double()
        assert_close(model(context[torch.randperm(13)], queries), model(context, queries))
        assert not torch.allclose(model(context[:7], queries), model(context, queries))


@pytest.mark.parametrize("attention", LAYERS)
class TestTargetsInTheContext:
    @pytest.fixture
    def case(self, attention):
        model = RowTransformer(FEATURES, WIDTH, depth=2, num_heads=HEADS, attention=attention, targets=True)
        context, queries, targets = torch.randn(13, FEATURES), torch.randn(5, FEATURES), torch.randn(13)
        return model.double().eval(), context.double(), queries.double(), targets.double()

    def test_targets_of_the_context_matter_row_by_row(self, case):
        model, context, queries, targets = case
        before = model(context, queries, targets)
        assert not torch.isclose(model(context, queries, targets.flip(0)), before).any()
        order = torch.randperm(13)
        assert_close(model(context[order], queries, targets[order]), before)

    def test_other_queries_have_no_influence(self, case):
        model, context, queries, targets = case
        before = model(context, queries, targets)
        queries[3] += 7
        after = model(context, queries, targets)
        assert_close(after[[0, 1, 2, 4]], before[[0, 1, 2, 4]], rtol=0, atol=0)

    def test_targets_that_are_missing_or_too_many(self, attention, case):
        model, context, queries, targets = case
        with pytest.raises(ValueError, match="built with targets=True, and needs targets of the context"):
            model(context, queries)
        with pytest.raises(ValueError, match="queries are missing: rows of the context know their targets"):
            model(context, targets=targets)
        with pytest.raises(ValueError, match="built with targets=False, and takes none"):
            rows(attention)(context, queries, targets)


def test_a_row_may_have_several_outputs() -> None:
    torch.manual_seed(0)
    model = RowTransformer(FEATURES, WIDTH, depth=1, num_heads=HEADS, attention=RBF, targets=True, outputs=3).eval()
    context, queries, targets = torch.randn(7, FEATURES), torch.randn(5, FEATURES), torch.randn(7)
    answers = model(context, queries, targets)
    assert answers.shape == (5, 3)
    assert_close(model(context, queries[2:3], targets), answers[2:3])


class TestEnsemble:
    def test_members_answer_each_for_itself(self):
        torch.manual_seed(0)
        ensemble = Ensemble(lambda: rows(IKANDirect), 3)
        for member in ensemble.members:
            member.reset_parameters()
        context, queries = torch.randn(7, FEATURES).double(), torch.randn(5, FEATURES).double()
        answers = ensemble(context, queries)
        assert answers.shape == (3, 5)
        assert (answers[0] != answers[1]).all() and (answers[1] != answers[2]).all()
        for member, own in zip(ensemble.members, answers, strict=True):
            assert_close(member(context, queries), own, rtol=0, atol=0)

    def test_none_are_no_ensemble(self):
        with pytest.raises(ValueError, match="count must be at least 1, got 0"):
            Ensemble(lambda: rows(RBF), 0)
