//! Variables that libraries read, and that belong to no key.

use super::*;

#[test]
fn the_sdks_choice_of_endpoints_is_true_or_false_and_nothing_like_it() {
    for variable in ["AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"] {
        for wrong in ["1", "yes", " true", "tru"] {
            let start = with_file("").and_env(variable, wrong);
            assert_eq!(
                start.faults(),
                [format!(
                    "environment variable {variable}: is neither true nor false; write true or false"
                )]
            );
            // Whoever reads nothing from AWS has no use for it.
            let elsewhere = with_file("backends.files = { type = \"file\", path = \"/srv\" }");
            elsewhere.and_env(variable, wrong).config();
        }
        for right in ["true", "False", ""] {
            with_file("").and_env(variable, right).config();
        }
    }
}

#[test]
fn a_proxy_that_would_be_passed_over_is_refused_without_showing_its_password() {
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        for wrong in [
            "http://me:hunter2@proxy:3128\n",
            " http://proxy:3128",
            "\"http://proxy:3128\"",
            "htp://proxy:3128",
            "socks5://proxy:1080",
            "http://one:1,http://two:2",
            "http://",
        ] {
            let start = with_file("").and_env(variable, wrong);
            let faults = start.faults().join("\n");
            let said = format!("environment variable {variable}: is no proxy");
            assert!(faults.starts_with(&said), "{wrong:?}: {faults}");
            assert!(!faults.contains("hunter2"), "{faults}");
            let elsewhere = with_file("backends.files = { type = \"file\", path = \"/srv\" }");
            elsewhere.and_env(variable, wrong).config();
        }
        for right in [
            "http://me:hunter2@proxy:3128",
            "https://proxy",
            "proxy:3128",
            "",
        ] {
            with_file("").and_env(variable, right).config();
        }
    }
}

#[test]
fn an_empty_variable_for_the_proxy_hides_no_other() {
    for [first, second] in [["HTTPS_PROXY", "https_proxy"], ["NO_PROXY", "no_proxy"]] {
        let start = with_file("")
            .and_env(first, "")
            .and_env(second, "proxy:3128");
        let said = format!("environment variable {first}: is empty, and hides {second}; unset it");
        assert_eq!(start.faults(), [said]);
        with_file("").and_env(first, "").config();
        with_file("")
            .and_env(second, "")
            .and_env(first, "proxy:3128")
            .config();
    }
}
