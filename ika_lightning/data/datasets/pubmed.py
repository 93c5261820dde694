"""The citation graph PubMed, with the public split of Planetoid."""

from ika_lightning.data.datasets.planetoid import planetoid

DATASET = planetoid(
    "pubmed",
    title="PubMed, citations between papers",
    figure="accuracy 79.0 ± 0.3 on the public split (GAT, Velickovic et al. 2018)",
    known=(
        (23_172, "fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33"),
        (405_505, "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d"),
        # never seen whole here: its shape and types are checked as it is read
        (None, None),
        (854, "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3"),
        (12_135, "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd"),
        (224_739, "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e"),
        (471_808, "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9"),
        (6_000, "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5"),
    ),
)
