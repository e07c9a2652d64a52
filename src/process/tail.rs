//! The end of what a process wrote.

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The last bytes of a stream; what came before is taken and forgotten.
#[derive(Debug)]
pub struct Tail {
    bytes: Vec<u8>,
    kept: usize,
}

impl Tail {
    /// Keeps so many bytes.
    #[must_use]
    pub const fn new(kept: usize) -> Self {
        Self { bytes: Vec::new(), kept }
    }

    /// Reads to the stream's end. A stream that cannot be read has ended as
    /// far as we are concerned.
    pub async fn fill(&mut self, pipe: &mut (impl AsyncRead + Unpin)) {
        let mut piece = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = pipe.read(&mut piece).await {
            self.bytes.extend(piece.iter().take(read));
            if self.bytes.len() > 2 * self.kept {
                self.bytes.drain(..self.bytes.len() - self.kept);
            }
        }
    }

    /// The last bytes as text that a terminal and a database can bear.
    #[must_use]
    pub fn text(&self, bytes_max: usize) -> String {
        let from = self.bytes.len().saturating_sub(bytes_max.min(self.kept));
        let bytes: Vec<u8> = self.bytes.iter().skip(from).copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let printable = text.trim().chars().map(|letter| match letter {
            '\n' | '\t' => letter,
            letter if letter.is_control() => char::REPLACEMENT_CHARACTER,
            letter => letter,
        });
        printable.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn tail(kept: usize, mut text: &[u8]) -> Tail {
        let mut tail = Tail::new(kept);
        tail.fill(&mut text).await;
        tail
    }

    #[tokio::test]
    async fn the_end_is_kept_and_the_rest_forgotten() {
        let long = format!("{}END", "x".repeat(1 << 20));
        let tail = tail(8, long.as_bytes()).await;
        assert_eq!(tail.text(100), "xxxxxEND");
        assert_eq!(tail.text(3), "END");
        assert!(tail.bytes.capacity() < 64 * 1024);
    }

    #[tokio::test]
    async fn control_characters_and_broken_text_do_no_harm() {
        let text = tail(100, b" \x1b[31mred\0\n\tgood \xff ").await.text(100);
        assert_eq!(text, "\u{fffd}[31mred\u{fffd}\n\tgood \u{fffd}");
    }
}
