//! A text as a template's definition, and then as the context of its tasks.

use bailiwick::domain::{Json, Namespace, template::Template};

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Template::parse(&Namespace::parse("shop").unwrap(), text) {
        Ok(parsed) => {
            assert!(!parsed.template.steps.is_empty());
            let _ = Json::parse(text).map(|context| parsed.template.check_context(&context));
        }
        Err(findings) => assert!(!findings.is_empty(), "refused for nothing"),
    }
}
