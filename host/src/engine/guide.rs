//! What a grammar lets a sequence become, as far as the engine sees it: a mask over tokens before each choice. The
//! engine knows no grammars; `llm` makes guides and computes their masks on a thread of its own, while the model
//! runs. A sequence whose mask takes longer than that waits with its logits, and the others go on without it. A guide is
//! part of one request and depends on that request's tokens only, so neither batches nor waiting change anything.

/// What gives every sequence of a request its guide.
pub trait Restriction: std::fmt::Debug + Send + Sync {
    /// A guide at the beginning of its text. Called where a request is submitted, not on the engine's thread.
    fn guide(&self) -> Box<dyn Guide>;
}

/// Restricts the tokens of one sequence.
pub trait Guide: Send {
    /// Whether [`Guide::allowed`] would answer at once.
    fn is_ready(&mut self) -> bool {
        true
    }

    /// What may come next: token `i` is bit `i % 32` of word `i / 32`, tokens beyond the last word are excluded. None:
    /// anything. Waits for the mask if it is not [ready](Guide::is_ready), which the engine never asks it to.
    fn allowed(&mut self) -> Result<Option<&[u32]>, GuideError>;

    /// `token` was chosen. True: the text is whole, and nothing may follow.
    fn push(&mut self, token: u32) -> Result<bool, GuideError>;
}

/// The grammar cannot go on. The request fails; others go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the structured output cannot go on: {0}")]
pub struct GuideError(pub String);
