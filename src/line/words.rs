//! A line as words: separated by blanks, or in double quotes with `\"` and
//! `\\`.

use std::borrow::Cow;

use crate::domain::schedule::is_plain;

/// The line cannot be read as words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The words of a line, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    /// Of a line without its end.
    #[must_use]
    pub fn new(line: &'a str) -> Self {
        Self(line)
    }

    /// The next word; none at the end.
    pub fn word(&mut self) -> Result<Option<Cow<'a, str>>, Malformed> {
        let text = self.0.trim_start_matches(is_blank);
        let Some(quoted) = text.strip_prefix('"') else {
            let end = text.find(is_blank).unwrap_or(text.len());
            let (word, rest) = text.split_at(end);
            self.0 = rest;
            // A quote within a word would mean one thing here and another to
            // its writer.
            return if word.contains('"') {
                Err(Malformed)
            } else {
                Ok((!word.is_empty()).then_some(Cow::Borrowed(word)))
            };
        };
        let (word, rest) = unquoted(quoted)?;
        if !rest.is_empty() && !rest.starts_with(is_blank) {
            return Err(Malformed);
        }
        self.0 = rest;
        Ok(Some(word))
    }

    /// All that are left.
    pub fn all(mut self) -> Result<Vec<Cow<'a, str>>, Malformed> {
        let mut words = Vec::new();
        while let Some(word) = self.word()? {
            words.push(word);
        }
        Ok(words)
    }

    /// What is left, as it stands but for the blanks around it.
    #[must_use]
    pub fn rest(self) -> &'a str {
        self.0.trim_matches(is_blank)
    }
}

fn is_blank(letter: char) -> bool {
    letter == ' ' || letter == '\t'
}

/// What stands in quotes, up to the closing one, and what follows it.
fn unquoted(text: &str) -> Result<(Cow<'_, str>, &str), Malformed> {
    let mut plain = String::new();
    let mut from = 0;
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        let before = || text.get(from..at).unwrap_or_default();
        match letter {
            '"' => {
                let rest = text.get(at + 1..).unwrap_or_default();
                if plain.is_empty() {
                    return Ok((Cow::Borrowed(before()), rest));
                }
                plain.push_str(before());
                return Ok((Cow::Owned(plain), rest));
            }
            '\\' => {
                plain.push_str(before());
                match letters.next() {
                    Some((_, escaped @ ('"' | '\\'))) => plain.push(escaped),
                    Some(_) | None => return Err(Malformed),
                }
                from = at + 2;
            }
            _ => {}
        }
    }
    Err(Malformed)
}

/// Writes a word so that it reads back: in quotes where it needs them.
pub fn write(out: &mut Vec<u8>, word: &str) {
    // An answer is one line, and nothing in it steers a terminal.
    let harmless: Cow<'_, str> = if is_plain(word) {
        Cow::Borrowed(word)
    } else {
        let shown = |letter: char| {
            if is_plain(letter.encode_utf8(&mut [0; 4])) { letter } else { '\u{fffd}' }
        };
        Cow::Owned(word.chars().map(shown).collect())
    };
    let word = &*harmless;
    let plain = !word.is_empty()
        && !word.starts_with('\\')
        && !word.contains(|letter| is_blank(letter) || letter == '"');
    if plain {
        out.extend_from_slice(word.as_bytes());
        return;
    }
    out.push(b'"');
    for byte in word.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(line: &str) -> Result<Vec<String>, Malformed> {
        Words::new(line).all().map(|words| words.into_iter().map(Cow::into_owned).collect())
    }

    #[test]
    fn words_are_separated_by_blanks_or_stand_in_quotes() {
        for (line, expected) in [
            ("", &[][..]),
            ("  a \t b ", &["a", "b"]),
            (r#"a "b c" """#, &["a", "b c", ""]),
            (r#""a\"b\\c""#, &[r#"a"b\c"#]),
            (r#""\\""#, &["\\"]),
            (r"a\b", &[r"a\b"]),
        ] {
            assert_eq!(words(line).unwrap(), expected, "{line}");
        }
        for bad in [r#"""#, r#""a"#, r#""a\"#, r#""a\n""#, r#"a"b"#, r#""a"b"#, r#""a\""#] {
            assert_eq!(words(bad), Err(Malformed), "{bad}");
        }
        let mut line = Words::new("RULE  echo \"a  b\" ");
        assert_eq!(line.word().unwrap().as_deref(), Some("RULE"));
        assert_eq!(line.rest(), "echo \"a  b\"");
    }

    proptest! {
        #[test]
        fn zt_11_what_is_written_reads_back(given in prop::collection::vec("[^\\n\\r]{0,12}", 1..6)) {
            // Letters that would end the line or steer a terminal are shown as others.
            let shown = |letter: char| if is_plain(&letter.to_string()) { letter } else { char::REPLACEMENT_CHARACTER };
            let given: Vec<String> = given.iter().map(|word| word.chars().map(shown).collect()).collect();
            let mut line = Vec::new();
            for word in &given {
                write(&mut line, word);
                line.push(b' ');
            }
            prop_assert_eq!(words(std::str::from_utf8(&line).unwrap()).unwrap(), given);
        }

        #[test]
        fn any_text_is_words_or_malformed(line in "[^\\n]{0,60}") {
            let _ = words(&line);
        }
    }
}
