//! The commands of docs/operate/install.md, as the page prints them.

const PAGE: &str = include_str!("../../../docs/operate/install.md");

/// Where the page's URLs and names lead, without the internet and a registry. Each is in the page.
const REPLACED: [(&str, &str); 3] = [
    (
        "https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.6.3/standard-install.yaml",
        "$GATEWAY_API_DEFINITIONS",
    ),
    (
        "https://raw.githubusercontent.com/envoyproxy/gateway/main/charts/gateway-helm/crds/generated/gateway.envoyproxy.io_backendtrafficpolicies.yaml",
        "$BACKEND_TRAFFIC_POLICY",
    ),
    ("REGISTRY/", ""),
];

/// A block of code.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) language: String,
    pub(crate) text: String,
}

/// The blocks of the page in their order, with what is replaced in them.
pub(crate) fn blocks() -> Vec<Block> {
    let mut page = PAGE.to_owned();
    for (from, to) in REPLACED {
        assert!(page.contains(from), "docs/operate/install.md no longer has {from}");
        page = page.replace(from, to);
    }
    let (mut blocks, mut open): (Vec<Block>, Option<(usize, Block)>) = (Vec::new(), None);
    for line in page.lines() {
        let indent = line.len() - line.trim_start().len();
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                let block = Block { language: language.to_owned(), text: String::new() };
                open = Some((indent, block));
            }
            (Some(_), Some(_)) => blocks.extend(open.take().map(|(_, block)| block)),
            (None, Some((indent, block))) => {
                block.text.push_str(line.get(*indent..).unwrap_or_default());
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block without an end");
    blocks
}
