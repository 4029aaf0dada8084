//! The page of the book that shows a suite's report.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The report as the suite writes it, below the workspace.
pub(crate) const REPORT: &str = "docs/conformance/gateway-http.yaml";
/// The page that is made from it.
pub(crate) const PAGE: &str = "docs/reference/conformance.md";

/// Some of these features are implemented, so the page does not call them unsupported.
const NOT_LISTED: &str = "Features that the GatewayClass does not list";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    date: String,
    #[serde(rename = "gatewayAPIVersion")]
    gateway_api_version: String,
    #[serde(rename = "gatewayAPIChannel")]
    gateway_api_channel: String,
    implementation: Implementation,
    profiles: Vec<ProfileReport>,
}

#[derive(Debug, Deserialize)]
struct Implementation {
    version: String,
}

#[derive(Debug, Deserialize)]
struct ProfileReport {
    name: String,
    core: TestGroup,
    extended: Option<TestGroup>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TestGroup {
    statistics: Statistics,
    #[serde(default)]
    failed_tests: Vec<String>,
    #[serde(default)]
    skipped_tests: Vec<String>,
    #[serde(default)]
    supported_features: Vec<String>,
    #[serde(default)]
    unsupported_features: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Statistics {
    passed: u32,
    failed: u32,
    skipped: u32,
}

/// The page for a report.
///
/// # Errors
/// The report is not one of the suite.
pub(crate) fn page(report: &str) -> Result<String> {
    let report: Report = serde_saphyr::from_str(report).context("the suite's report")?;
    let date = report.date.split('T').next().unwrap_or_default();
    let mut page = format!(
        "# Gateway API conformance

`cargo xtask conformance gateway` makes this page from the report of the Gateway API's own conformance suite,
`docs/conformance/gateway-http.yaml`. The suite ran unchanged, with the features that `status.supportedFeatures` of the
GatewayClass lists, on a cluster with two nodes.

| | |
|---|---|
| pd-router | {} |
| Gateway API | {}, channel {} |
| date | {date} |

| profile | tests | passed | failed | skipped |
|---|---|---|---|---|
",
        report.implementation.version, report.gateway_api_version, report.gateway_api_channel
    );
    let groups = report.profiles.iter().flat_map(|profile| {
        let extended = profile.extended.as_ref().map(|group| (&profile.name, "extended", group));
        [Some((&profile.name, "core", &profile.core)), extended].into_iter().flatten()
    });
    let groups: Vec<_> = groups.collect();
    for (profile, group, TestGroup { statistics, .. }) in &groups {
        let Statistics { passed, failed, skipped } = statistics;
        writeln!(page, "| `{profile}` | {group} | {passed} | {failed} | {skipped} |")?;
    }
    for (_, name, group) in &groups {
        list(&mut page, &format!("Failed {name} tests"), "", &group.failed_tests)?;
        list(&mut page, &format!("Skipped {name} tests"), "", &group.skipped_tests)?;
        list(&mut page, "Supported features", "", &group.supported_features)?;
        let note = "Their tests were not run.\n\n";
        list(&mut page, NOT_LISTED, note, &group.unsupported_features)?;
    }
    Ok(page)
}

fn list(page: &mut String, heading: &str, note: &str, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    write!(page, "\n## {heading}\n\n{note}")?;
    for name in names {
        writeln!(page, "- {name}")?;
    }
    Ok(())
}

/// A report as the suite writes it.
#[cfg(test)]
pub(crate) const EXAMPLE: &str = "apiVersion: gateway.networking.k8s.io/v1
date: \"2026-01-02T03:04:05Z\"
gatewayAPIChannel: standard
gatewayAPIVersion: v1.6.3
implementation: {contact: [a], organization: b, project: c, url: d, version: v1}
kind: ConformanceReport
mode: default
profiles:
- core:
    failedTests: [GatewayModifyListeners]
    result: failure
    statistics: {Failed: 1, Passed: 35, Skipped: 0}
  extended:
    result: success
    statistics: {Failed: 0, Passed: 20, Skipped: 0}
    supportedFeatures: [HTTPRouteMethodMatching]
    unsupportedFeatures: [HTTPRouteCORS]
  name: GATEWAY-HTTP
  summary: \"\"
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_figure_and_every_failure() {
        let page = page(EXAMPLE).unwrap();
        for expected in [
            "| `GATEWAY-HTTP` | core | 35 | 1 | 0 |\n",
            "| `GATEWAY-HTTP` | extended | 20 | 0 | 0 |\n",
            "## Failed core tests\n\n- GatewayModifyListeners\n",
            "## Supported features\n\n- HTTPRouteMethodMatching\n",
            "that the GatewayClass does not list\n\nTheir tests were not run.\n\n- HTTPRouteCORS\n",
            "| date | 2026-01-02 |\n",
        ] {
            assert!(page.contains(expected), "{expected}\n{page}");
        }
        assert!(!page.contains("Failed extended"), "{page}");
    }

    #[test]
    fn a_file_that_is_no_report_is_refused() {
        assert!(page("kind: Pod\n").is_err());
    }
}
