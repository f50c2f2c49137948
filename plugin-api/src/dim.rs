//! Symbolic dimensions: polynomials in `T` (tokens of a step) and `R` (rows whose logits are wanted).
//!
//! Used by every shape of the IR. Arithmetic is checked: a hostile graph cannot overflow it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A dimension: a sum of terms `coefficient * T^t * R^r`, kept sorted and without zero terms.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Dim(Vec<Term>);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Term {
    t: u8,
    r: u8,
    coefficient: i64,
}

/// Most terms of one dimension; models have two or three. Keeps arithmetic on hostile graphs cheap.
pub(crate) const MAX_TERMS: usize = 64;

/// Why a dimension could not be computed or read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DimError {
    /// The arithmetic left 63 bits.
    #[error("a dimension does not fit in 63 bits")]
    Overflow,
    /// Too many different powers of T and R.
    #[error("a dimension has more than {MAX_TERMS} terms")]
    Terms,
    /// The value is negative at the given sizes.
    #[error("dimension {0} is negative at T={1}, R={2}")]
    Negative(Dim, usize, usize),
    /// Not the text of a dimension.
    #[error("`{0}` is not a dimension (a polynomial in T and R such as `64`, `T` or `2*T+1`)")]
    Syntax(String),
}

impl Dim {
    /// The number of tokens of the step.
    #[allow(non_snake_case)]
    pub fn T() -> Dim {
        Dim(vec![Term { t: 1, r: 0, coefficient: 1 }])
    }

    /// The number of rows whose logits are wanted.
    #[allow(non_snake_case)]
    pub fn R() -> Dim {
        Dim(vec![Term { t: 0, r: 1, coefficient: 1 }])
    }

    /// The value if this is a constant.
    pub fn as_const(&self) -> Option<i64> {
        match self.0.as_slice() {
            [] => Some(0),
            [Term { t: 0, r: 0, coefficient }] => Some(*coefficient),
            _ => None,
        }
    }

    /// Powers of T with their coefficients, highest first, unless R is in it.
    pub fn token_terms(&self) -> Option<Vec<(u8, i64)>> {
        self.0.iter().map(|term| (term.r == 0).then_some((term.t, term.coefficient))).collect()
    }

    /// Whether this is the constant 1, which broadcasts.
    pub fn is_one(&self) -> bool {
        self.as_const() == Some(1)
    }

    /// The largest size of a coefficient.
    pub(crate) fn largest_coefficient(&self) -> i64 {
        self.0.iter().map(|t| t.coefficient.saturating_abs()).max().unwrap_or(0)
    }

    /// Sum.
    pub fn add(&self, other: &Dim) -> Result<Dim, DimError> {
        Dim::collect(self.0.iter().chain(&other.0).copied())
    }

    /// Difference.
    pub fn sub(&self, other: &Dim) -> Result<Dim, DimError> {
        self.add(&other.mul(&Dim::from(-1i64))?)
    }

    /// Product.
    pub fn mul(&self, other: &Dim) -> Result<Dim, DimError> {
        let mut terms = Vec::with_capacity(self.0.len() * other.0.len()); // each at most MAX_TERMS
        for a in &self.0 {
            for b in &other.0 {
                terms.push(Term {
                    t: a.t.checked_add(b.t).ok_or(DimError::Overflow)?,
                    r: a.r.checked_add(b.r).ok_or(DimError::Overflow)?,
                    coefficient: a.coefficient.checked_mul(b.coefficient).ok_or(DimError::Overflow)?,
                });
            }
        }
        Dim::collect(terms.into_iter())
    }

    /// The dimension that gives this one when multiplied by `part`, if there is one: `part` is a single term, or a
    /// fraction of the whole.
    pub fn quotient(&self, part: &Dim) -> Option<Dim> {
        let ratio = |whole: i64, part: i64| (part != 0 && whole % part == 0).then(|| whole / part);
        if let [term] = part.0.as_slice() {
            let divided = self.0.iter().map(|w| {
                Some(Term {
                    t: w.t.checked_sub(term.t)?,
                    r: w.r.checked_sub(term.r)?,
                    coefficient: ratio(w.coefficient, term.coefficient)?,
                })
            });
            return Some(Dim(divided.collect::<Option<_>>()?));
        }
        let constant = Dim::from(ratio(self.0.first()?.coefficient, part.0.first()?.coefficient)?);
        (part.mul(&constant).ok()? == *self).then_some(constant)
    }

    /// The value at `T = t`, `R = r`.
    pub fn eval(&self, t: usize, r: usize) -> Result<usize, DimError> {
        let mut sum = 0i64;
        for term in &self.0 {
            let power = |base: usize, exponent: u8| {
                i64::try_from(base).ok().and_then(|b| b.checked_pow(exponent.into())).ok_or(DimError::Overflow)
            };
            let product = term
                .coefficient
                .checked_mul(power(t, term.t)?)
                .and_then(|p| p.checked_mul(power(r, term.r).ok()?))
                .ok_or(DimError::Overflow)?;
            sum = sum.checked_add(product).ok_or(DimError::Overflow)?;
        }
        usize::try_from(sum).map_err(|_| DimError::Negative(self.clone(), t, r))
    }

    fn collect(terms: impl Iterator<Item = Term>) -> Result<Dim, DimError> {
        let mut out: Vec<Term> = Vec::new();
        for term in terms {
            let full = out.len() == MAX_TERMS;
            match out.iter_mut().find(|o| (o.t, o.r) == (term.t, term.r)) {
                Some(o) => o.coefficient = o.coefficient.checked_add(term.coefficient).ok_or(DimError::Overflow)?,
                None if full => return Err(DimError::Terms),
                None => out.push(term),
            }
        }
        out.retain(|t| t.coefficient != 0);
        out.sort_by_key(|t| std::cmp::Reverse((t.t, t.r)));
        Ok(Dim(out))
    }
}

impl From<i64> for Dim {
    fn from(n: i64) -> Dim {
        Dim(if n == 0 { vec![] } else { vec![Term { t: 0, r: 0, coefficient: n }] })
    }
}

impl From<usize> for Dim {
    /// Sizes beyond `i64::MAX` saturate; [`crate::spec::verify`] refuses sizes that large.
    fn from(n: usize) -> Dim {
        Dim::from(i64::try_from(n).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("0");
        }
        for (i, term) in self.0.iter().enumerate() {
            if i > 0 && term.coefficient >= 0 {
                f.write_str("+")?;
            }
            let symbols: Vec<&str> =
                std::iter::repeat_n("T", term.t.into()).chain(std::iter::repeat_n("R", term.r.into())).collect();
            match (term.coefficient, symbols.is_empty()) {
                (c, true) => write!(f, "{c}")?,
                (1, false) => f.write_str(&symbols.join("*"))?,
                (-1, false) => write!(f, "-{}", symbols.join("*"))?,
                (c, false) => write!(f, "{c}*{}", symbols.join("*"))?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Dim {
    type Err = DimError;

    fn from_str(text: &str) -> Result<Dim, DimError> {
        let bad = || DimError::Syntax(text.chars().take(80).collect());
        let mut sum = Dim::from(0i64);
        // `2*T-3` becomes the terms `2*T` and `-3`.
        let spaced = text.replace('-', "+-");
        for (i, term) in spaced.split('+').enumerate() {
            if term.is_empty() {
                if i == 0 && text.starts_with('-') {
                    continue;
                }
                return Err(bad());
            }
            let (sign, body) = match term.strip_prefix('-') {
                Some(rest) => (-1i64, rest),
                None => (1, term),
            };
            let mut product = Dim::from(sign);
            for factor in body.split('*') {
                let factor = match factor.trim() {
                    "T" => Dim::T(),
                    "R" => Dim::R(),
                    digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
                        Dim::from(digits.parse::<i64>().map_err(|_| bad())?)
                    }
                    _ => return Err(bad()),
                };
                product = product.mul(&factor)?;
            }
            sum = sum.add(&product)?;
        }
        Ok(sum)
    }
}

impl Serialize for Dim {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.as_const() {
            Some(n) => s.serialize_i64(n),
            None => s.serialize_str(&self.to_string()),
        }
    }
}

impl<'de> Deserialize<'de> for Dim {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Dim, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Dim;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer or a polynomial in T and R in quotes")
            }
            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Dim, E> {
                Ok(Dim::from(n))
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Dim, E> {
                i64::try_from(n).map(Dim::from).map_err(E::custom)
            }
            fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<Dim, E> {
                s.parse().map_err(E::custom)
            }
        }
        d.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dim(s: &str) -> Dim {
        s.parse().expect("a dimension")
    }

    #[test]
    fn prints_what_it_parses() {
        for text in ["0", "1", "64", "T", "R", "2*T", "T*T+3*T-1", "-T+5", "2*T*R+7"] {
            assert_eq!(dim(text).to_string(), text);
        }
    }

    #[test]
    fn arithmetic_agrees_with_numbers() {
        let (a, b) = (dim("2*T+3"), dim("T*R+1"));
        for (t, r) in [(0, 0), (1, 1), (5, 2), (13, 7)] {
            let (x, y) = (2 * t + 3, t * r + 1);
            assert_eq!(a.add(&b).unwrap().eval(t, r), Ok(x + y));
            assert_eq!(a.mul(&b).unwrap().eval(t, r), Ok(x * y));
        }
        assert_eq!(a.sub(&a).unwrap(), dim("0"));
    }

    #[test]
    fn quotients_multiply_back() {
        for (whole, part, quotient) in
            [("12", "4", "3"), ("6*T", "T", "6"), ("6*T", "2", "3*T"), ("2*T+6", "2", "T+3"), ("2*T+6", "T+3", "2")]
        {
            assert_eq!(dim(whole).quotient(&dim(part)), Some(dim(quotient)), "{whole} / {part}");
        }
        for (whole, part) in [("12", "5"), ("T", "2"), ("6", "T"), ("T+1", "T"), ("T+3", "0"), ("0", "T+1")] {
            assert_eq!(dim(whole).quotient(&dim(part)), None, "{whole} / {part}");
        }
    }

    #[test]
    fn terms_are_of_tokens_only() {
        assert_eq!(dim("T*T-3*T+2").token_terms(), Some(vec![(2, 1), (1, -3), (0, 2)]));
        assert_eq!(dim("T+R").token_terms(), None);
    }

    #[test]
    fn bad_text_and_overflow_are_errors() {
        for text in ["", "X", "T+", "2**T", "1.5", "--T", "T T", "99999999999999999999"] {
            assert!(text.parse::<Dim>().is_err(), "{text}");
        }
        let powers = |n: usize| (1..=n).map(|i| vec!["T"; i].join("*")).collect::<Vec<_>>().join("+");
        assert!(powers(MAX_TERMS).parse::<Dim>().is_ok());
        assert_eq!(powers(MAX_TERMS + 1).parse::<Dim>(), Err(DimError::Terms));
        let huge = Dim::from(i64::MAX);
        assert_eq!(huge.mul(&huge), Err(DimError::Overflow));
        assert_eq!(huge.add(&dim("1")), Err(DimError::Overflow));
        assert_eq!(dim("T*T*T*T*T").eval(1 << 20, 0), Err(DimError::Overflow));
        assert_eq!(dim("T-5").eval(3, 0), Err(DimError::Negative(dim("T-5"), 3, 0)));
    }
}
