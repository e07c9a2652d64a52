//! Runs the fuzz targets over their corpora, without a fuzzer.

use std::{fs, path::Path};

#[path = "../../fuzz/src/targets/api_key.rs"]
mod api_key;
#[path = "../../fuzz/src/targets/gateway.rs"]
mod gateway;
#[path = "../../fuzz/src/targets/jwt.rs"]
mod jwt;
#[path = "../../fuzz/src/targets/line.rs"]
mod line;
#[path = "../../fuzz/src/targets/template.rs"]
mod template;
#[path = "../../fuzz/src/targets/token_file.rs"]
mod token_file;
#[path = "../../fuzz/src/targets/ztick_logfile.rs"]
mod ztick_logfile;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let whole = fs::read(&path).unwrap();
        run(&whole);
        // What is cut anywhere must do no harm either.
        for end in (0..whole.len()).step_by(whole.len() / 50 + 1) {
            run(&whole[..end]);
        }
        files += 1;
    }
    assert!(files >= 5, "{files} files in {}", folder.display());
}

#[test]
fn se_23_the_corpus_of_jwt() {
    replay("jwt", jwt::run);
}

#[test]
fn the_corpus_of_gateway() {
    replay("gateway", gateway::run);
}

#[test]
fn the_corpus_of_template() {
    replay("template", template::run);
}

#[test]
fn dk_49_se_14_the_corpus_of_api_key() {
    replay("api_key", api_key::run);
}

#[test]
fn dk_03_se_34_se_35_the_corpus_of_token_file() {
    replay("token_file", token_file::run);
}

#[test]
fn the_corpus_of_ztick_logfile() {
    replay("ztick_logfile", ztick_logfile::run);
}

#[test]
fn zt_11_zt_14_the_corpus_of_line() {
    replay("line", line::run);
}
