//! The words of the e-mails.

/// Subject line and body.
pub(crate) struct Text {
    pub(crate) subject: String,
    pub(crate) body: String,
}

/// What to write about a step of an order; a step that is not known is told by its name.
pub(crate) fn text(kind: &str, order: &str, shipping: Option<&str>) -> Text {
    let (subject, body) = match kind {
        "created" => (
            "has been received",
            "Thank you. We will begin once it is paid.",
        ),
        "paid" => ("is paid", "We have your payment and prepare the shipping."),
        "payment-failed" => (
            "could not be paid",
            "Your payment did not succeed. Please try again.",
        ),
        "shipped" => ("is on its way", "We have handed it over."),
        "completed" => ("has been delivered", "We hope that you enjoy it."),
        other => (other, "There is news about it."),
    };
    let mut body = body.to_owned();
    if let (Some(shipping), "shipped") = (shipping, kind) {
        body.push_str(" Your shipping number is ");
        body.push_str(shipping);
        body.push('.');
    }
    Text {
        subject: ["Your order ", order, " ", subject].concat(),
        body,
    }
}
