"""What the results should be, from the papers' equations: float64, loops, and nothing of ours imported."""

import numpy as np


def lora_output(W, b, x, adapters, rows):
    """Row by row and token by token: y = W x + b + scaling B (A x), for the adapter that the row names, or none.

    x is (rows, tokens, in); adapters maps a name to (A, B, scaling).
    """
    W, x = np.asarray(W, np.float64), np.asarray(x, np.float64)
    out = np.zeros((*x.shape[:2], W.shape[0]))
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            y = W @ x[i, t]
            if b is not None:
                y = y + np.asarray(b, np.float64)
            if rows[i] is not None:
                A, B, scaling = adapters[rows[i]]
                y = y + scaling * (np.asarray(B, np.float64) @ (np.asarray(A, np.float64) @ x[i, t]))
            out[i, t] = y
    return out


def lora_gradients(x, g, A, B, scaling, tokens):
    """Gradients of sum(g * out) for one adapter over the given tokens of x (tokens, in) and g (tokens, out)."""
    x, g, A, B = (np.asarray(value, np.float64) for value in (x, g, A, B))
    grad_A, grad_B, grad_x = np.zeros_like(A), np.zeros_like(B), np.zeros_like(x)
    for t in tokens:
        grad_B += scaling * np.outer(g[t], A @ x[t])
        grad_A += scaling * np.outer(B.T @ g[t], x[t])
        grad_x[t] += scaling * A.T @ (B.T @ g[t])
    return grad_A, grad_B, grad_x


def merged_weight(W, A, B, scaling):
    """W + scaling B A, element by element."""
    W, A, B = (np.asarray(value, np.float64) for value in (W, A, B))
    out = W.copy()
    for i in range(W.shape[0]):
        for j in range(W.shape[1]):
            for k in range(A.shape[0]):
                out[i, j] += scaling * B[i, k] * A[k, j]
    return out


def cross_entropy_sum(logits, labels, ignore):
    """The summed negative log-likelihood of the labelled positions."""
    total = 0.0
    for row, label in zip(np.asarray(logits, np.float64), labels, strict=True):
        if label != ignore:
            top = row.max()
            total += top + np.log(np.exp(row - top).sum()) - row[label]
    return total


def document_attention(q, k, v, g, lengths, scaling, parents=()):
    """Token by token: (result, and the gradients of sum(g * result) for q, k and v); q is (heads, t, dim), g (t, heads, dim).

    The last of the lengths are those of branches, which see the documents of these numbers too.
    """
    q, k, v, g = (np.asarray(x.detach().double(), np.float64) for x in (q, k, v, g))
    group = len(q) // len(k)
    out = np.zeros((q.shape[1], len(q), v.shape[2]))
    grad_q, grad_k, grad_v = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    start = 0
    for number, length in enumerate(lengths):
        branch = number - (len(lengths) - len(parents))
        first = sum(lengths[: parents[branch]]) if branch >= 0 else 0
        before = range(first, first + lengths[parents[branch]]) if branch >= 0 else ()
        for h in range(len(q)):
            for t in range(start, start + length):
                seen = [*before, *range(start, t + 1)]
                scores = np.array([scaling * q[h, t] @ k[h // group, s] for s in seen])
                P = np.exp(scores - scores.max())
                P /= P.sum()
                dP = np.array([g[t, h] @ v[h // group, s] for s in seen])
                dS = P * (dP - P @ dP)
                for i, s in enumerate(seen):
                    out[t, h] += P[i] * v[h // group, s]
                    grad_v[h // group, s] += P[i] * g[t, h]
                    grad_q[h, t] += scaling * dS[i] * k[h // group, s]
                    grad_k[h // group, s] += scaling * dS[i] * q[h, t]
        start += length
    return out, grad_q, grad_k, grad_v
